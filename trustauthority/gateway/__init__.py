"""The HTTP/JSON gateway: for schedulers and scripts that don't speak gRPC.

A process of its own and an ordinary client of the authority, with an identity like any other (role
``placement``, or less). It holds no database and no VM key, and can do nothing that its identity may
not. Callers show a client certificate or a bearer token.
"""
