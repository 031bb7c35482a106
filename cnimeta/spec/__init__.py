"""The CNI specification as pure data: versions, network configurations, results, arguments. No host access."""
