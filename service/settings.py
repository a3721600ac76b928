"""All settings of the service: environment variables `NORMSCOPE_...` or options of `python -m service`, read once, frozen."""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from models.preprocessing import DEFAULT_MAX_PIXELS
from service.statistics.retention import HOUR_S, Retention

_SHIPPED = Path(__file__).resolve().parent.parent / "models" / "artifacts"

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # gRPC and the server hold no more


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _divides_an_hour(seconds: int) -> int:
    if HOUR_S % seconds:
        raise ValueError(f"{seconds} does not divide {HOUR_S}, so that windows could not be merged into hours; take 60")
    return seconds


def _retention(text: str) -> str:
    Retention.parse(text)
    return text


def _webhook(url: SecretStr) -> SecretStr:
    """The message does not show the URL: it may hold a secret."""
    text = url.get_secret_value()
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
        valid = valid and text.isascii() and text.isprintable() and " " not in text
    except ValueError:  # no number as port, brackets without an address
        valid = False
    if not valid:
        raise ValueError("no URL to post to; write https://HOST/PATH, without user and password")
    return url


Seconds = Annotated[float, Field(le=86_400)]  # no timer takes infinity
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings with their defaults; units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix="NORMSCOPE_",
        frozen=True,
        extra="ignore",
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_implicit_flags=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, whose empty variables count as unset: compose files pass on what is not there as `${NAME:-}`."""
        return init_settings, EnvSettingsSource(settings_cls, env_ignore_empty=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    grpc_port: int | None = Field(default=None, ge=0, le=65535, description="port of gRPC, 0 takes a free one; unset: no gRPC")
    model_repository: Path = Field(default=_SHIPPED, description="folder of artifacts NAME/VERSION to serve")
    watch: bool = Field(default=False, description="load, replace and unload models as the repository changes")
    watch_interval_s: Seconds = Field(default=5, gt=0, description="seconds between two looks at the repository")
    provider: Literal["cpu", "cuda"] = Field(default="cpu", description="execution provider; cuda needs onnxruntime-gpu")
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="threads that run each model, of which short texts leave one to the event loop; 0: as many as the CPU quota "
        "of the container or service",
    )
    max_body_bytes: Count = Field(default=20_000_000, description="largest body of a request, also after decompression")
    max_header_bytes: Count = Field(default=65_536, description="largest head of a request: request line and headers")
    header_timeout_s: Seconds = Field(default=10, gt=0, description="seconds that a client has to send the head of a request")
    body_timeout_s: Seconds = Field(default=30, gt=0, description="seconds that a client has to send the body of a request")
    idle_timeout_s: Seconds = Field(
        default=75,
        gt=0,
        description="seconds that a connection may be idle; more than a proxy in front keeps it",
    )
    max_image_pixels: Count = Field(default=DEFAULT_MAX_PIXELS, description="largest image, width x height")
    max_inputs: Count = Field(default=32, description="most photos, texts or rows of a tensor in one request")
    max_batch_size: Count = Field(default=32, description="most inputs of a run; as many runs as threads go on at once")
    max_batch_elements: Count = Field(
        default=4 * 3 * 224 * 224, description="most numbers in the inputs of a run; bounds the memory of activations"
    )
    max_queue_delay_ms: float = Field(
        default=0, ge=0, le=86_400_000, description="milliseconds that a batch waits for more inputs; 0: never"
    )
    max_queue: Count = Field(
        default=128, description="most requests in hand for a model, and full runs that all their inputs make; more is refused"
    )
    max_experiments: Count = Field(
        default=4, description="most requests with statistics=histogram or what-if in hand for a model; one more is refused"
    )
    request_timeout_s: Seconds = Field(default=60, gt=0, description="seconds until a request is given up, unless it asks for less")
    max_statistics_values: Count = Field(default=1_000_000, description="most statistics in one answer")
    statistics_sample: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the batches that count in the statistics over traffic, at least one a second; 0 takes none",
    )
    statistics_window_s: Annotated[int, Field(ge=1, le=3600), AfterValidator(_divides_an_hour)] = Field(
        default=60, description="seconds of a window of the statistics over traffic; divides 3600"
    )
    statistics_flush_s: float = Field(
        default=10, gt=0, le=1800, description="seconds between two times that statistics are stored, 1800 at most"
    )
    statistics_retention: Annotated[str, AfterValidator(_retention)] = Field(
        default="6h,7d,365d", description="how long windows are kept until merged into hours, hours until days, and days"
    )
    data_dir: Path | None = Field(default=None, description="folder of the stored statistics; unset or empty: kept in memory")
    database_url: SecretStr | None = Field(
        default=None, description="database of the statistics instead, such as postgresql://user:password@host/name"
    )
    drift_false_alarms_per_month: float = Field(
        default=1,
        gt=0,
        allow_inf_nan=False,
        description="false `drift` states to be expected of each model in 30 days, over all its layers together",
    )
    alert_webhook: Annotated[SecretStr, AfterValidator(_webhook)] | None = Field(
        default=None, description="URL that every change of a drift state is posted to; unset: none"
    )
    alert_webhook_secret: SecretStr | None = Field(
        default=None, min_length=1, description="key that what is posted is signed with; unset: not signed"
    )
    metrics_layers: str = Field(
        default="",
        max_length=2000,
        description="layers, as in `layers=`, whose statistics /metrics shows, 50 at most of each model; empty: none",
    )
    api_keys: Keys = Field(default=(), description="keys, with commas, one of which every request must carry; empty: none is asked")
    admin_api_keys: Keys = Field(default=(), description="keys that may also load and unload models; empty: any key may")
    open_metrics: bool = Field(default=False, description="/metrics needs no key")
    cors_origins: Names = Field(
        default=(), description="origins, with commas, whose pages may call the API from a browser; * for all"
    )
    drain_delay_s: Seconds = Field(
        default=0, ge=0, description="seconds to go on serving after SIGTERM, until routers have noticed"
    )
    shutdown_grace_s: Count = Field(default=30, description="seconds that accepted requests have to finish after that")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug (each request), info (4xx), warning, error"
    )
    log_format: Literal["console", "json"] = Field(default="console", description="how it is logged")


_SECRETS = {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}


def explain(error: ValidationError) -> str:
    """One line for each setting that cannot be used; what was given is shown unless it is secret."""
    lines = []
    for each in error.errors():
        name = ".".join(map(str, each["loc"]))
        given = "" if not each["loc"] or each["loc"][0] in _SECRETS else f" (given: {each['input']!r})"
        lines.append(f"{name}: {each['msg']}{given}")
    return "\n".join(lines)
