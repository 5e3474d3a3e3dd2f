"""How tests are shared among the workers of pytest-xdist: by files, because fixtures are; and whatever is told to one
deployment goes to one worker, or each would start it anew."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_DEPLOYMENT = re.compile(r"^tests/e2e/test_stories_.*\[((?:log table|kafka)-(?:one process|four processes))")


class ByFixtures(LoadScopeScheduling):
    """A scope is a file, or all stories of one deployment."""

    def _split_scope(self, nodeid: str) -> str:
        told = _DEPLOYMENT.match(nodeid)
        return told[1] if told else nodeid.partition("::")[0]
