"""A real nginx, set up as ingress-nginx would do it from the example's files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from app.dev.embedded import EmbeddedError, unpack
from bench.testbed.ports import free_port
from bench.testbed.process import Program
from tests.kustomize import K8S, of_kind, the

CONTROLLER: dict[str, str] = yaml.safe_load((K8S / "cluster/ingress-nginx.yaml").read_text())[
    "data"
]
# The place of each key and annotation in the controller's template, and its own defaults.
CONFIG = """
daemon off; master_process off; pid nginx.pid;
error_log error.log {error-log-level};
events {{ worker_connections 512; }}
http {{
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    large_client_header_buffers {large-client-header-buffers};
    client_header_timeout {header_timeout_s}s;
    log_format upstreaminfo '{log-format-upstream}';
    access_log access.log upstreaminfo;
    map "" $req_id {{ default $request_id; }}
    upstream gateways {{
        {servers}
        keepalive 32;
        keepalive_timeout {upstream-keepalive-timeout}s;
    }}
    server {{
        listen 127.0.0.1:{port} default_server;
{locations}
        {server-snippet}
    }}
}}
"""
LOCATION = """
        location {path} {{
            client_max_body_size {proxy-body-size};
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_http_version 1.1;
            proxy_connect_timeout {proxy-connect-timeout}s;
            proxy_read_timeout {proxy-read-timeout}s;
            proxy_next_upstream {proxy-next-upstream};
            proxy_next_upstream_tries {proxy-next-upstream-tries};
            proxy_next_upstream_timeout {proxy-next-upstream-timeout};
            proxy_pass http://gateways;
        }}
"""


def find_nginx() -> str:
    """The program: Debian's, or else the host's. Raises `EmbeddedError`."""
    try:
        return str(unpack(["nginx"]) / "usr/sbin/nginx")
    except EmbeddedError:
        found = shutil.which("nginx")
        if found is None:
            raise
        return found


def configuration(port: int, servers: list[int], **changed: str) -> str:
    """The configuration for gateways on these ports of this machine."""
    annotations = of_kind("Ingress")["flokit-gateway"]["metadata"]["annotations"]
    values = {name.partition("/")[2]: value for name, value in annotations.items()}
    paths = the("Ingress")["rules"][0]["http"]["paths"]
    locations = "".join(
        LOCATION.format(path=f"= {path['path']}", **values)
        + (LOCATION.format(path=f"{path['path']}/", **values) * (path["pathType"] == "Prefix"))
        for path in paths
    )
    lines = " ".join(f"server 127.0.0.1:{server};" for server in servers)
    given = CONTROLLER | {"header_timeout_s": "60"} | changed
    return CONFIG.format(port=port, servers=lines, locations=locations, **given)


@contextmanager
def nginx(folder: Path, servers: list[int], **changed: str) -> Iterator[int]:
    """Run nginx in front of gateways; yields its port. `changed` replaces keys of the example."""
    port, log = free_port(), folder / "error.log"
    (folder / "nginx.conf").write_text(configuration(port, servers, **changed))
    command = [find_nginx(), "-p", str(folder), "-c", "nginx.conf", "-e", str(log)]
    with Program(command, folder / "output.log") as process:
        process.wait_until((folder / "nginx.pid").exists)  # written when it listens
        yield port
        assert process.exit_code is None, log.read_text()
