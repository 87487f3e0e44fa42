"""asyncssh as a program: `python sftp_program.py PORT DIRECTORY KNOWN_HOSTS`, user and password in SFTP_USER and SFTP_PASSWORD.

Writes the file that names its key, and stays in front.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncssh  # type: ignore[import-not-found,import-untyped,unused-ignore]


class Users(asyncssh.SSHServer):  # type: ignore[misc,unused-ignore]
    """One user, who signs in with a password."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (os.environ["SFTP_USER"], os.environ["SFTP_PASSWORD"])


async def serve(port: int, directory: str, known_hosts: str) -> None:
    """Serve a directory, until killed."""

    def files(channel: Any) -> Any:
        return asyncssh.SFTPServer(channel, chroot=os.fsencode(directory))

    key = asyncssh.generate_private_key("ssh-ed25519")
    Path(known_hosts).write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
    server = await asyncssh.create_server(Users, "127.0.0.1", port, server_host_keys=[key], sftp_factory=files)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
