"""`bulk`: `predict` for more images than one process should be trusted with, on Ray Data.

`command` is the verb, `layout` says what lies where, `worker` segments and writes, `merge` makes one result of what all
workers wrote. `cluster` alone imports Ray: everything else runs, and is tested, without it.
"""
