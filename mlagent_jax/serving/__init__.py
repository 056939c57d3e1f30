"""The policy behind OpenAI's HTTP interface.

`app` has the routes. `access` checks the client, `schema` reads the request, `service` samples in one shared batch, and
`replies` formats the answer. Refusals are in `errors`.
"""
