"""Which OpenMMLab stack the tests run on: `make test STACK=...`."""

import importlib.util
from importlib import metadata

FORK = any(metadata.distributions(name='onedl-mmsegmentation'))
COMPILED = importlib.util.find_spec('mmcv._ext') is not None
