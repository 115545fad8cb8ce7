package vaultclient

import (
	"context"

	"sealed.dev/sealed/internal/sealed"
)

// Sources lists the names of the sources.
func (e *Engine) Sources(ctx context.Context) ([]string, error) {
	names, _, err := e.list(ctx, nil, "sources")
	return names, err
}

// Source reads a source, without its credential.
func (e *Engine) Source(ctx context.Context, name sealed.Name) (sealed.SourceConfig, error) {
	var out sealed.SourceConfig
	if err := segment("source", string(name)); err != nil {
		return out, err
	}
	f, err := e.read(ctx, nil, "sources", string(name))
	if err != nil {
		return out, err
	}
	return out, f.document("source", &out)
}

// WriteSource writes a source. A nil credential leaves the stored one, unless
// the source now points elsewhere: then it is dropped, and dropped is true. The
// caller wipes credential. A change that waits for a second person is a *ProposedError.
func (e *Engine) WriteSource(ctx context.Context, s sealed.SourceConfig, credential []byte) (dropped bool, err error) {
	if err := segment("source", string(s.Name)); err != nil {
		return false, err
	}
	doc, err := encode("source", s)
	if err != nil {
		return false, err
	}
	data := map[string]any{"source": doc}
	if credential != nil {
		data["credential"] = string(credential)
	}
	f, err := e.write(ctx, data, "sources", string(s.Name))
	if err == nil {
		err = f.proposed()
	}
	return f.bool("credential_dropped"), err
}

// CheckSource lets the engine try a source. It returns what is wrong, or "".
func (e *Engine) CheckSource(ctx context.Context, name sealed.Name) (problem string, err error) {
	if err := segment("source", string(name)); err != nil {
		return "", err
	}
	f, err := e.read(ctx, nil, "sources", string(name), "check")
	if err != nil || f.bool("ok") {
		return "", err
	}
	if problem, err = f.text("error"); problem == "" {
		problem = "it can't be used"
	}
	return problem, err
}

// DeleteSource deletes a source and its credential. One that a profile uses is
// sealed.ErrConflict unless force is set.
func (e *Engine) DeleteSource(ctx context.Context, name sealed.Name, force bool) error {
	if err := segment("source", string(name)); err != nil {
		return err
	}
	query := map[string]string{}
	if force {
		query["force"] = "true"
	}
	return e.remove(ctx, query, "sources", string(name))
}
