"""Small rewrites of a traced graph, one a file; which ones apply, and in which order, is each target's."""
