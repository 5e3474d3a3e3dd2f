"""HTTP → events; sources and their keys; the dead letters of all services.

collect.py       the collecting endpoints: a bare ASGI app, asked before FastAPI
reading.py       body → items and envelope                 strict_json.py  JSON that strangers wrote
parse.py         item → Event or Refused                   json_split.py   a broken body cut into its items
  origin.py        which identifiers, whose event it is    times.py        when it occurred
  subscriptions.py consent and its proof                   public_limits.py names and links of public sources
intake.py        parse, keep what is refused, append       replaying.py    a dead letter is taken again
sources.py       write keys and the cache of them            mending.py      … or as a patch mends it
gate.py          limits under pressure                     described.py    the collecting endpoints in /docs
api.py           /v1/sources                               dead_letters_api.py  /v1/dead-letters
bootstrap.py     the first two sources                     store.py, tables.py, service.py, metrics.py
"""
