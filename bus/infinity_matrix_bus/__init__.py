"""Everything NATS: subjects, codec, streams, the supervised connection, the log reader, the publisher, the server."""
