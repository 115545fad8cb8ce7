package vaultplugin

import (
	"context"
	"net/http"
	"regexp"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// nounFunc answers a request with fields, with nil for "there is none" (which
// Vault shows as 404), or with an error.
type nounFunc func(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error)

// op adapts a nounFunc. What is given to it was checked by known.
func (b *backend) op(summary string, f nounFunc) *framework.PathOperation {
	return &framework.PathOperation{
		Summary:                     summary,
		ForwardPerformanceStandby:   true,
		ForwardPerformanceSecondary: true,
		Callback: func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
			out, err := f(ctx, req, d)
			if err != nil {
				return nil, b.edge(namingField(err, d))
			}
			if out == nil {
				return nil, nil
			}
			return &logical.Response{Data: out}, nil
		},
	}
}

// display is what path-help and OpenAPI show for a noun.
func display(suffix string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{OperationPrefix: "sealed", OperationSuffix: suffix}
}

// A fieldConversion error of the framework begins like this; the rest quotes
// the value.
var fieldConversion = regexp.MustCompile(`^Field validation failed: error converting input for field "([A-Za-z0-9_]{1,64})"`)

// HandleRequest implements logical.Backend. It replaces the framework's error
// for a field of the wrong type, which quotes the offending value: that value
// may be a credential, and errors are not hashed in Vault's audit file (F17).
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if req.Operation != logical.HelpOperation && req.Operation != logical.RollbackOperation {
		if err := b.layout.ready(ctx, b, req.Storage); err == logical.ErrReadOnly {
			return nil, err
		} else if err != nil {
			return nil, b.edge(err)
		}
	}
	if err := b.refuseRolledBack(ctx, req); err != nil {
		return nil, b.edge(err)
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if resp == nil || !resp.IsError() {
		return resp, err
	}
	text, _ := resp.Data["error"].(string)
	if m := fieldConversion.FindStringSubmatch(text); m != nil {
		return nil, logical.CodedError(http.StatusBadRequest, "field "+m[1]+": has the wrong type")
	}
	return resp, err
}

// text returns a string field, "" when it is not set.
func text(d *framework.FieldData, name string) string {
	s, _ := d.Get(name).(string)
	return s
}

// invalid names a field that was refused. reason never quotes its value.
func invalid(field, reason string) error { return &sealed.FieldError{Field: field, Reason: reason} }
