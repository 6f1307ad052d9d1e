"""A folder in an S3 bucket, asked for like one on a web server: each request is signed beforehand.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

S3_PREFIX = "s3://"
# As long as fetching takes at most; a file that has begun goes on with the same signature.
SIGNED_FOR_S = 24 * 3600
_REGION = "us-east-1"

# The URL of a file in the folder, by method and name.
Locate = Callable[[str, str], str]


class BucketError(Exception):
    """Why nothing can be signed, in one sentence; no try makes it better."""


@dataclass(frozen=True)
class Credentials:
    """`token` is that of a session, "" for keys that last."""

    key: str
    secret: str
    token: str = ""


def locate_files(address: str) -> Locate:
    """Of the folder at `address`, which is http's own or s3://BUCKET/PATH; raises BucketError.

    Endpoint, region and credentials of a bucket are those of AWS's own tools: variables, else the
    credentials file. Without credentials it is asked as everybody.
    """
    address = address.rstrip("/")
    if not address.startswith(S3_PREFIX):
        return lambda _method, name: f"{address}/{name}"
    bucket, _, folder = address.removeprefix(S3_PREFIX).partition("/")
    region = _variable("AWS_REGION", "AWS_DEFAULT_REGION") or _REGION
    root = _root(bucket, region)
    credentials = find_credentials()

    def locate(method: str, name: str) -> str:
        url = f"{root}/{quote(f'{folder}/{name}'.lstrip('/'))}"
        if credentials is None:
            return url
        return sign_url(method, url, credentials, region, datetime.now(UTC))

    return locate


def find_credentials() -> Credentials | None:
    """None where there are none; raises BucketError where the file says too little."""
    if key := _variable("AWS_ACCESS_KEY_ID"):
        secret = _variable("AWS_SECRET_ACCESS_KEY")
        if not secret:
            raise BucketError("needs AWS_SECRET_ACCESS_KEY beside AWS_ACCESS_KEY_ID")
        return Credentials(key, secret, _variable("AWS_SESSION_TOKEN"))
    file = Path(_variable("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = _variable("AWS_PROFILE") or "default"
    read = configparser.ConfigParser(interpolation=None)
    try:
        if not read.read(file, "utf-8"):
            return None
        found = read[profile]
        token = found.get("aws_session_token", "")
        return Credentials(found["aws_access_key_id"], found["aws_secret_access_key"], token)
    except (configparser.Error, KeyError, OSError, UnicodeDecodeError):
        # The parser's own words repeat lines of the file.
        raise BucketError(
            f"{file} has no aws_access_key_id and aws_secret_access_key below [{profile}]"
        ) from None


def sign_url(method: str, url: str, credentials: Credentials, region: str, now: datetime) -> str:
    """The URL, whose path is quoted and which has no query, signed for SIGNED_FOR_S seconds."""
    parts = urlsplit(url)
    day, second = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{day}/{region}/s3/aws4_request"
    given = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.key}/{scope}",
        "X-Amz-Date": second,
        "X-Amz-Expires": str(SIGNED_FOR_S),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.token:
        given["X-Amz-Security-Token"] = credentials.token
    query = urlencode(sorted(given.items()), quote_via=quote, safe="")
    request = [method, parts.path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD"]
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    key = f"AWS4{credentials.secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{second}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return f"{url}?{query}&X-Amz-Signature={signature}"


def _root(bucket: str, region: str) -> str:
    """Another store has its buckets as folders; AWS too, where the name does not fit a host's."""
    if endpoint := _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        return f"{endpoint.rstrip('/')}/{bucket}"
    if "." in bucket:
        return f"https://s3.{region}.amazonaws.com/{bucket}"
    return f"https://{bucket}.s3.{region}.amazonaws.com"


def _variable(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
