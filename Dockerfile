# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The cache mounts persist between builds, so a source change does not recompile the dependencies. They are not part of the
# image, so the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin offramp && cp target/release/offramp /usr/local/bin/offramp

FROM debian:bookworm-slim
# Authorities for TLS to servers with public certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin offramp
# A single file: email templates are compiled in.
COPY --from=build /usr/local/bin/offramp /usr/local/bin/offramp
USER 10001
ENV OFFRAMP_HTTP_ADDR=0.0.0.0:9464
EXPOSE 9464
# Liveness, not readiness: a worker that waits for a server must not be restarted. The image has no curl, so bash sends the
# request.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["bash", "-c", "exec 3<>\"/dev/tcp/127.0.0.1/${OFFRAMP_HTTP_ADDR##*:}\" && printf 'GET /livez HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["offramp"]
CMD ["run"]
