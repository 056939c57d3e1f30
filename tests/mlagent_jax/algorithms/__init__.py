"""Updates of policies: the tests share a tiny one."""
