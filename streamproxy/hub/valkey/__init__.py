"""The store that processes share: `store` has the streams, `files` the uploads, `scripts` Lua, `client` connections."""
