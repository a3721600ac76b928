"""All routes of the protocol under /v2."""

from fastapi import APIRouter

from service.api.oip import health, inference, metadata, not_offered, repository, statistics

router = APIRouter()
# of the static paths that also fit a route with a model in it, the static ones come first
for _module in (inference, health, statistics, repository, not_offered, metadata):
    router.include_router(_module.router)
hot_router = inference.router
"""The routes whose speed counts; their endpoints take the request and its path parameters alone."""
