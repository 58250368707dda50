"""The guard of a repository: what is deleted only with a second person's confirmation, and after a delay
(docs/format.md section 14).

`rules` says what is guaranteed, `acts` what can be asked for, `persons` who signs, `states` which rules are in force,
`requests` what was asked, confirmed and decided, `patience` how long ago that was, and `guard` puts them together: it
alone gives a `Permit`, and nothing in imaging deletes a point, a key slot or a protection without one.
"""
