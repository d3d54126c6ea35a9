"""The packs of the paper's authors: read without running anything in them, and written.

Reading order: packs.py, network.py, archive.py, unpickler.py, data.py.
"""

from piggyback.lab.official.packs import (
    check_pack,
    export_official,
    import_official,
    save_official,
)

__all__ = ["check_pack", "export_official", "import_official", "save_official"]
