"""From the trace of a request to its explanation."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

import msgspec
from msgspec.structs import replace

import adapters
from app import normalize
from app.access import CREDENTIAL_HEADERS, sent_app_token, sent_secrets
from app.commands.explain.discretion import Discretion
from app.commands.explain.dry_run import Trace
from app.commands.explain.explanation import Explanation, Verdict
from app.commands.explain.hints import Facts, hints, pairs
from app.commands.explain.vendors import VendorNames, is_placeholder
from app.errors import GatewayError, NotConfigured, UnknownVendor, Unverified
from app.event import App, Callback, Drop, DropReason, Event

# Beyond it the parameters of an identity are not searched.
SEARCHED_MAX = 200
_TYPE_REASONS = (
    DropReason.UNMAPPED_EVENT, DropReason.IGNORED, DropReason.UNFILLED_PLACEHOLDER
)  # fmt: skip
_COLUMNS = ("user_id", "adid", "idfa", "gps_adid", "os_name", "country")
_FINAL = "the vendor does not send it again"
_RETRIED = "the vendor sends it again"
