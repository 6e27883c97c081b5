package cluster

import (
	"errors"
	"fmt"
	"time"
)

// permanent is an error that no waiting helps against.
type permanent struct{ error }

// within repeats a check until it succeeds or the time is over.
func within(limit time.Duration, what string, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if errors.As(err, new(permanent)) || time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
