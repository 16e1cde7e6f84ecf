"""Parts as plain data: from Python files, JSON and the command line, and back. Nothing here knows a part by name."""

from mmjax.tree.files import load_json, read_json, run_file
from mmjax.tree.overrides import literal, override
from mmjax.tree.part import fields, kinds, part, setting, with_settings
from mmjax.tree.plain import differences, flat, from_dict, to_dict
from mmjax.tree.trust import check_trusted, found_beside, trust, trust_named
