package vaultplugin

import (
	"errors"
	"net/http"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// errRefused is the one answer to "unknown" and "forbidden" (F23): the caller
// can't tell a key that does not exist from one that is not for it.
var errRefused = logical.CodedError(http.StatusForbidden, "refused")

// edge maps an error to what crosses the plugin boundary. logical.CodedError
// has to be outermost: the gRPC edge compares with == and does not unwrap. An
// error that is none of ours becomes a bare 500; its text goes to the log.
func (b *backend) edge(err error) error {
	if err == nil {
		return nil
	}
	var coded logical.HTTPCodedError
	if errors.As(err, &coded) {
		return logical.CodedError(coded.Code(), coded.Error())
	}
	status := 0
	switch {
	case errors.Is(err, sealed.ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, sealed.ErrConflict):
		status = http.StatusConflict
	case errors.Is(err, sealed.ErrApprovalRequired):
		status = http.StatusPreconditionRequired
	case errors.Is(err, sealed.ErrRevoked), errors.Is(err, sealed.ErrDenied), errors.Is(err, sealed.ErrNotFound):
		status = http.StatusForbidden
	case errors.Is(err, sealed.ErrUnavailable):
		status = http.StatusServiceUnavailable
	}
	if status == 0 {
		b.Logger().Error("request failed", "error", err)
		return logical.CodedError(http.StatusInternalServerError, "internal error; the server's log has the cause")
	}
	return logical.CodedError(status, err.Error())
}
