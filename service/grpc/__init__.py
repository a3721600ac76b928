"""The Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, with the standard health and reflection services.

The same methods, checks, limits and words as under /v2, on the event loop of the HTTP server and a port of its own. Needs the extra
`grpc`; nothing outside this package imports it before the setting `grpc_port` asks for it.

- Tensors come as `raw_input_contents` or typed `contents`, and go as `raw_output_contents`.
- The deadline of the client bounds a request as the parameter `timeout` does; work for a cancelled call is dropped.
- A call whose message does not come within `body_timeout_s` ends with DEADLINE_EXCEEDED; a stream may be idle for as long as its
  client answers pings. While more calls are in hand than all queues hold and as many as one queue again, further ones are
  UNAVAILABLE before their messages are read; as many streams again may be idle.
- API keys are sent as the metadata `authorization` or `x-api-key`; `x-request-id` is taken and returned as the header is.
- Every message of a stream is answered in order by one message, which holds the error if there is one.
- Methods of extensions that are not offered answer UNIMPLEMENTED.
"""
