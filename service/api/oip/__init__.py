"""The Open Inference Protocol v2 over HTTP with Triton's extensions, under /v2.

Offered: binary tensor data, classification, model configuration, model repository, parameters, statistics. Shared memory, tracing,
logging and sequences are not, and answer 501.

**Layer statistics** are output tensors, FP32, NaN where a statistic is undefined, infinite where it does not fit FP32. They are not
among the outputs of the metadata, so that a client that asks for all outputs does not pay for them. A request asks for them by
name in `outputs`, or by the parameter `layer_statistics`:

- `none`, the default;
- `summary`: `statistics.{side}.{statistic}` of shape [N, rows]. Sides are `before` and `after` of normalizations, `identity`,
  `residual` and `sum` of residual adds, each with count, mean, var, std, min, max, l2, zeros and nonfinite; and `add` with
  residual_ratio and cosine. The rows of a side are the layers that have it, in the order of /v1/models/{model}/layers; the rows of
  `add` are the residual adds;
- `channels`: the summary, and `statistics.{layer}.{side}.{statistic}` of shape [N, C] for every layer and side, without count.

The parameters of the model's configuration list all of it as JSON in their string values: `layer_statistics.summary` and
`layer_statistics.channels` the names, `layer_statistics.rows.{side}` the layers.
"""
