"""All settings of the service: environment variables `NORMSCOPE_...` or options of `python -m service`, read once, frozen."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.preprocessing import DEFAULT_MAX_PIXELS

_SHIPPED = Path(__file__).resolve().parent.parent / "models" / "artifacts"

Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Settings with their defaults; units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix="NORMSCOPE_", frozen=True, extra="ignore", cli_prog_name="python -m service", cli_kebab_case=True
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model_repository: Path = Field(default=_SHIPPED, description="folder of artifacts NAME/VERSION to serve")
    threads: int = Field(default=0, ge=0, description="threads of a run; 0: as many as the CPU quota of the container")
    max_body_bytes: Count = Field(default=20_000_000, description="largest body of a request")
    max_image_pixels: Count = Field(default=DEFAULT_MAX_PIXELS, description="largest image, width x height")
    max_inputs: Count = Field(default=32, description="most photos or texts in one request")
    max_batch_size: Count = Field(default=8, description="most inputs that run at once; bounds the memory of activations")
    max_queue: Count = Field(default=64, description="most requests that wait for a model; one more is answered 429")
    max_statistics_values: Count = Field(default=1_000_000, description="most statistics in one answer")
    traffic_statistics: bool = Field(
        default=True,
        description="count every request in the statistics over traffic; false runs those without statistics faster",
    )
    shutdown_grace_s: Count = Field(default=30, description="seconds that accepted requests have to finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="what is logged")
