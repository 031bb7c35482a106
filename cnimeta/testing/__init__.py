"""Everything to test CNI plugins without a host: in-memory runs, fakes of every seam, a conformance suite."""

from cnimeta.testing.memory import call as call
