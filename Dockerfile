# syntax=docker/dockerfile:1

# Base images are pinned by digest, of the index of all architectures. Dependabot proposes newer ones; by hand:
#   docker buildx imagetools inspect rust:1.95-slim-bookworm --format '{{.Manifest.Digest}}'
# The build has an older Debian than the image, so that the same binary runs on servers from glibc 2.36 on (docs/operate/install.md).
FROM rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
# `cargo auditable` embeds the names and versions of all dependencies, by which scanners recognize vulnerable ones.
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /src
COPY . .
ARG REVISION=unknown
ARG TARGETPLATFORM
# The cache mounts persist between builds, so a source change does not recompile the dependencies. They are not part of the
# image, so the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=offramp-target-$TARGETPLATFORM \
    OFFRAMP_REVISION=$REVISION cargo auditable build --release --locked --bin offramp \
    && cp target/release/offramp /usr/local/bin/offramp

# Only the program, for `docker build --target binary --output dist .`
FROM scratch AS binary
COPY --from=build /usr/local/bin/offramp /

# glibc, certificate authorities, time zones and a user: no shell, no package manager.
FROM gcr.io/distroless/cc-debian13:nonroot@sha256:54df941ed0d06a1bd95ef5e0ce391fd8d9f94b64782dc9a60062727849ee3f97
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Offramp" \
      org.opencontainers.image.description="Ends monthly subscriptions: commands from RabbitMQ, documents in MongoDB, emails and events" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION
# A single file: email templates are compiled in.
COPY --from=build /usr/local/bin/offramp /usr/local/bin/offramp
# A number, so that Kubernetes can verify that it is not root.
USER 65532:65532
# A default, so that OFFRAMP_HTTP_ADDR and OFFRAMP_HTTP_ADDR_FILE can be set as elsewhere.
ENV OFFRAMP_HTTP_ADDR_DEFAULT=0.0.0.0:9464
EXPOSE 9464
# Liveness, not readiness: a worker that waits for a server must not be restarted.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["offramp", "healthcheck"]
ENTRYPOINT ["offramp"]
CMD ["run"]
