"""pyftpdlib as a program: `python ftp_program.py PORT DIRECTORY`, user and password in FTP_USER and FTP_PASSWORD. Stays in front."""

from __future__ import annotations

import os
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

LIST_AND_READ = "elr"


def serve(port: int, directory: str) -> None:
    """Serve a directory for reading, until killed."""
    authorizer = DummyAuthorizer()
    authorizer.add_user(os.environ["FTP_USER"], os.environ["FTP_PASSWORD"], directory, perm=LIST_AND_READ)

    class Session(FTPHandler):  # type: ignore[misc]  # pyftpdlib has no types
        pass

    Session.authorizer = authorizer
    Session.use_gmt_times = True
    ThreadedFTPServer(("127.0.0.1", port), Session).serve_forever(handle_exit=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
