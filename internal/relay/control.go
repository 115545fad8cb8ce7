package relay

import (
	"fmt"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// sendTimeout bounds one control message towards a peer that does not read.
const sendTimeout = 5 * time.Second

// A Control is the control stream, the same at both ends. Send is safe for
// concurrent use; Receive is for one goroutine.
type Control struct {
	s  *stream
	mu sync.Mutex
}

// Send writes one message and waits at most five seconds for room.
func (c *Control) Send(msg sealed.RelayControl) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.s.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("sending control message: %w", err)
	}
	if err := writeLine(c.s, msg, MaxControl); err != nil {
		return fmt.Errorf("sending control message: %w", err)
	}
	return nil
}

// Receive reads the next message; unknown fields are refused. It returns
// io.EOF when the peer has closed the stream.
func (c *Control) Receive() (sealed.RelayControl, error) {
	var msg sealed.RelayControl
	line, err := readLine(c.s.r, MaxControl)
	if err != nil {
		return msg, err
	}
	if err := sealed.Decode(line, MaxControl, &msg); err != nil {
		return msg, fmt.Errorf("receiving control message: %w", err)
	}
	return msg, nil
}

// Close ends the sender's side of the stream.
func (c *Control) Close() error { return c.s.Close() }
