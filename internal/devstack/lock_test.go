package devstack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// TestLockFile: two at once take turns; who waits is told, and may give up.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := lockFile(t.Context(), path, func() { t.Error("waited for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		if f, err := lockFile(ctx, path, cancel); !errors.Is(err, context.Canceled) || f != nil {
			t.Errorf("one that gave up: %v, %v", f, err)
		}
		told := 0
		done := make(chan *os.File)
		go func() {
			f, err := lockFile(t.Context(), path, func() { told++ })
			if err != nil {
				t.Error(err)
			}
			done <- f
		}()
		synctest.Wait()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		if f := <-done; f != nil {
			_ = f.Close()
		}
	})
}
