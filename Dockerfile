# One image per function: docker build --build-arg FUNCTION=projects .
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

# Nothing but the program, and whom to trust.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
COPY --from=build /function /function
ENTRYPOINT ["/function"]
