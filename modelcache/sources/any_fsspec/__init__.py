"""Every other scheme that fsspec has a filesystem for: `az`, `abfs`, `oss`, `webhdfs`, `hdfs`, `ftp`, `sftp`, `smb`, …

fsspec and the package of the scheme are imported when a source of it is made. Slower than the sources of our own: fsspec hands out
bytes as copies, and each block of them is followed by a look at the file's version.
"""

from modelcache.sources.any_fsspec.azure_key import AzureKey
from modelcache.sources.any_fsspec.hdfs import HdfsKeys
from modelcache.sources.any_fsspec.options import CallersKeys, FsspecOptions
from modelcache.sources.any_fsspec.source import FsspecSource

__all__ = ["AzureKey", "CallersKeys", "FsspecOptions", "FsspecSource", "HdfsKeys"]
