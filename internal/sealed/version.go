package sealed

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
)

// A SourceVersion names one version of a value at its source: a number where
// the upstream counts, from 1, else the upstream's own id. It is compared and
// never ordered. The zero value is none: the newest where one is asked for,
// unknown where one is told.
//
// In JSON a number is a number and anything else a string; reading takes a
// number as a string too.
type SourceVersion string

var versionRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}$`)

// VersionNumber is the version with a number; none for 0.
func VersionNumber(n int) SourceVersion {
	if n == 0 {
		return ""
	}
	return SourceVersion(strconv.Itoa(n))
}

// Number is the number that v is. ok is false for an id, and for none.
func (v SourceVersion) Number() (n int, ok bool) {
	n, err := strconv.Atoi(string(v))
	return n, err == nil && n > 0 && n < 1<<31 && strconv.Itoa(n) == string(v)
}

// Validate refuses what is no version. None is valid. The error matches
// ErrInvalid.
func (v SourceVersion) Validate(field string) error {
	if v != "" && !versionRE.MatchString(string(v)) {
		return fieldErr(field, "wants the number of a version, or an id of at most 128 characters")
	}
	return nil
}

// PinnedNumber is the number of the version that r pins, 0 for the newest,
// where the upstream counts versions. The error matches ErrInvalid.
func (r KeyRef) PinnedNumber() (int, error) {
	n, ok := r.Version.Number()
	if r.Version != "" && !ok {
		return 0, fieldErr("ref.version", "this kind of source keeps versions by number")
	}
	return n, nil
}

// MarshalJSON implements json.Marshaler.
func (v SourceVersion) MarshalJSON() ([]byte, error) {
	if n, ok := v.Number(); ok {
		return strconv.AppendInt(nil, int64(n), 10), nil
	}
	return json.Marshal(string(v))
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *SourceVersion) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(v))
	}
	if string(b) == "null" {
		return nil // as json.Unmarshaler wants it
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return fmt.Errorf("decoding version: neither a number nor an id: %w", ErrInvalid)
	}
	*v = VersionNumber(n) // Validate refuses a negative one, and can name the field
	return nil
}
