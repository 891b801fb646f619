"""Make the catalog of tiled.yml, once, and whenever tags.yml changed: python prepare_tiled.py FOLDER tags.yml."""

import asyncio
import sys
from pathlib import Path

from tiled.access_control.access_tags import AccessTagsCompiler
from tiled.access_control.scopes import ALL_SCOPES
from tiled.commandline._catalog import init
from tiled.server.settings import DatabaseSettings

folder, tags = Path(sys.argv[1]), Path(sys.argv[2])
(folder / "data").mkdir(parents=True, exist_ok=True)
database = f"sqlite+aiosqlite:///{folder / 'catalog.db'}"
init(database, if_not_exists=True)
compiler = AccessTagsCompiler(ALL_SCOPES, str(tags), DatabaseSettings(uri=database), group_parser=lambda group: [])
compiler.load_tag_config()
asyncio.run(compiler.compile())
