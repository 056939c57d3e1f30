"""The policy behind OpenAI's HTTP interface.

`access` says who may ask, `schema` reads what, `service` makes it in one shared batch, `replies` writes it down, and
`app` has the routes. Refusals are in `errors`.
"""
