"""Content-addressed artifacts in a folder or any fsspec URI, and the only code that publishes.

`files.py` moves whole files and has the patience; `store.py` makes artifacts of them; `lease.py`
sees to it that two runs do not make the same one; `collection.py` and `verification.py` are
`etstpm store gc` and `verify`.
"""

from etstpm.storage.artifact import Artifact, Card, file_sha256
from etstpm.storage.lease import make_once
from etstpm.storage.store import Store

__all__ = ["Artifact", "Card", "Store", "file_sha256", "make_once"]
