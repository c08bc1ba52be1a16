"""DashScope's error codes, from its page "Error messages" and the pages of its models."""

from __future__ import annotations

from bide.providers._refusals import Codes, FaultReader

_CODES: Codes = {
    "invalidparameter": ("refused", 400),
    "badrequest": ("refused", 400),
    "badrequesterror": ("refused", 400),
    "invalidurl": ("refused", 400),
    "invalidfile": ("refused", 400),
    "invalidimage": ("refused", 400),
    "datainspectionfailed": ("refused", 400),
    "datainspection": ("refused", 400),
    "ipinfringementsuspect": ("refused", 400),
    "unsupportedoperation": ("refused", 400),
    "arrearage": ("billing", 400),
    "invalidapikey": ("refused", 401),
    "accessdenied": ("refused", 403),
    "model.accessdenied": ("refused", 403),
    "allocationquota.freetieronly": ("billing", 403),
    "modelnotfound": ("refused", 404),
    "conflict": ("refused", 409),
    "throttling": ("rate", 429),
    "throttling.ratequota": ("rate", 429),
    "throttling.burstrate": ("rate", 429),
    "throttling.allocationquota": ("rate", 429),
    "throttling.concurrency": ("slots", 429),
    "limitrequests": ("rate", 429),
    # Here a rate per minute or second. At other services this code means that the account must pay.
    "insufficientquota": ("rate", 429),
    "commoditynotpurchased": ("billing", 429),
    "prepaidbilloverdue": ("billing", 429),
    "postpaidbilloverdue": ("billing", 429),
    "budgetlimitexceeded": ("billing", 429),
    "internalerror": ("outage", 500),
    "systemerror": ("outage", 500),
    "modelservicefailed": ("outage", 500),
    "requesttimeout": ("outage", 500),
    "modelservingerror": ("capacity", 503),
    "serviceunavailable": ("capacity", 503),
    "modelunavailable": ("capacity", 503),
}
FAULTS = FaultReader(
    title="DashScope",
    key_variable="DASHSCOPE_API_KEY",
    codes=_CODES,
    exact=frozenset({"throttling"}),
    billing_words=("free allocated quota exceeded", "free tier of the model has been exhausted"),
)
