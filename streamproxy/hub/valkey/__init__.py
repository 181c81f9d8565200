"""The store that processes share: `store` keeps streams, `scripts` change them, `client` talks to the server."""
