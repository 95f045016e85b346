"""Commands: arguments in, package called. What ``tools/*.py`` start."""
