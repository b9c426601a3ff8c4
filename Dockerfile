# One image per function: docker build --build-arg FUNCTION=projects .
#
# The function migrations archives schemas, for which it runs pg_dump and pg_restore: it takes
# --build-arg BASE=with-programs. Keep their version at least as new as the newest server they dump.
ARG BASE=bare

FROM golang:1.26-bookworm AS build
ARG FUNCTION
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY functions functions
COPY infra infra
COPY shared shared
RUN test -d "functions/${FUNCTION}/cmd" || { echo "FUNCTION must name a folder of functions/, not '${FUNCTION}'" >&2; exit 1; }
RUN CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o /function "./functions/${FUNCTION}/cmd"

FROM scratch AS bare

FROM alpine:3.23 AS with-programs
RUN apk add --no-cache postgresql18-client

# Nothing but the program, and whom to trust.
FROM ${BASE}
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
COPY --from=build /function /function
ENTRYPOINT ["/function"]
