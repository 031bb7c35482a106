"""A conformance suite for any CNI plugin executable, in any language, against the CNI specification 1.1.0.

    cnimeta conformance /opt/cni/bin/portmap --conf portmap.json

runs the plugin in throw-away namespaces of networks and mounts, and judges what it prints and returns; CHECK is the
observer of what ADD, DEL and GC really did, so a GC that frees nothing is found. As a library: `with sandbox(path,
conf) as subject: findings = examine(subject)`. Every rule cites its sentence; docs/conformance.md shows reports.
"""

from cnimeta.testing.conformance.examination import FAIL as FAIL
from cnimeta.testing.conformance.examination import NOT_APPLICABLE as NOT_APPLICABLE
from cnimeta.testing.conformance.examination import PASS as PASS
from cnimeta.testing.conformance.examination import Finding as Finding
from cnimeta.testing.conformance.examination import examine as examine
from cnimeta.testing.conformance.table import RULES as RULES
