package sandboxinit

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync"

	"sealed.dev/sealed/internal/sealed"
)

// requests is the agent's side door: which keys there are, and asking for one
// that a person has to allow. Answers hold names, placeholders and handles,
// never values. The proxy has checked token, Host and Origin already.
type requests struct {
	keys *keyring
	one  sync.Mutex // held through a request, I/O included: no two grants for one key

	mu      sync.Mutex // guards pending; never held during I/O
	pending map[sealed.KeyName]sealed.ApprovalID
}

// A keyState is what the agent may know about a key.
type keyState struct {
	Key         sealed.KeyName    `json:"key"`
	State       string            `json:"state"` // granted, pending, available, denied
	Delivery    sealed.Delivery   `json:"delivery,omitempty"`
	Placeholder string            `json:"placeholder,omitempty"`
	BaseURL     string            `json:"base_url,omitempty"` // path on the proxy: /b/KEY
	Approval    sealed.ApprovalID `json:"approval,omitempty"`
	Reasons     []sealed.Reason   `json:"reasons,omitempty"`
}

func (q *requests) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sealed/keys", q.list)
	mux.HandleFunc("POST /sealed/requests", q.ask)
	return mux
}

func (q *requests) list(w http.ResponseWriter, _ *http.Request) {
	out := []keyState{}
	for _, key := range q.keys.session.answer.Keys {
		st := keyState{Key: key.Name, State: "available", Delivery: key.Delivery}
		id, waits := q.waiting(key.Name)
		switch {
		case q.keys.live(key.Name):
			st = q.granted(key)
		case waits:
			st.State, st.Approval = "pending", id
		case key.Effect == sealed.EffectDeny:
			st.State = "denied"
		}
		out = append(out, st)
	}
	answer(w, http.StatusOK, out)
}

func (q *requests) granted(key sealed.ClaimKey) keyState {
	st := keyState{Key: key.Name, State: "granted", Delivery: key.Delivery}
	if !key.Delivery.GivesValue() {
		st.Placeholder, st.BaseURL = q.keys.placeholders[key.Name], "/b/"+string(key.Name)
	}
	return st
}

// ask handles one request for a key: granted, pending with an id, or denied
// with reasons; never a wait. The agent asks again to learn the outcome.
func (q *requests) ask(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Key    sealed.KeyName `json:"key"`
		Reason string         `json:"reason"`
	}
	body := http.MaxBytesReader(w, r.Body, 8<<10)
	if err := json.NewDecoder(body).Decode(&in); err != nil {
		answer(w, http.StatusBadRequest, keyState{State: "denied", Reasons: []sealed.Reason{{Code: "malformed", Msg: "wants {\"key\":…,\"reason\":…}"}}})
		return
	}
	key, ok := q.keys.find(in.Key)
	switch {
	case !ok || key.Effect == sealed.EffectDeny:
		answer(w, http.StatusForbidden, denied(in.Key, "not_available", "this run has no such key, or may not use it"))
	case q.keys.live(key.Name):
		answer(w, http.StatusOK, q.granted(key))
	case key.Delivery.GivesValue():
		answer(w, http.StatusForbidden, denied(in.Key, "delivery", "a key of env delivery can only be given when the agent starts"))
	default:
		status, st := q.request(r, key, in.Reason)
		answer(w, status, st)
	}
}

// waiting is the approval that a key waits for, if it does.
func (q *requests) waiting(key sealed.KeyName) (sealed.ApprovalID, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id, ok := q.pending[key]
	return id, ok
}

// wait notes what a key waits for; "" is nothing.
func (q *requests) wait(key sealed.KeyName, id sealed.ApprovalID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if id == "" {
		delete(q.pending, key)
		return
	}
	q.pending[key] = id
}

// request asks the engine once per key for the decision, and from then on
// only tries to issue: the engine refuses until the persons have agreed.
func (q *requests) request(r *http.Request, key sealed.ClaimKey, reason string) (int, keyState) {
	q.one.Lock()
	defer q.one.Unlock()
	if q.keys.live(key.Name) {
		return http.StatusOK, q.granted(key)
	}
	id, asked := q.waiting(key.Name)
	if !asked {
		a, err := q.keys.session.more(r.Context(), key.Name, reason)
		if err != nil {
			return failed(key.Name, err)
		}
		if a.Effect == sealed.EffectDeny {
			return http.StatusForbidden, keyState{Key: key.Name, State: "denied", Reasons: a.Reasons}
		}
		id = a.Approval
		q.wait(key.Name, id)
	}
	err := q.keys.issue(r.Context(), key)
	switch {
	case err == nil:
		q.wait(key.Name, "")
		return http.StatusOK, q.granted(key)
	case errors.Is(err, sealed.ErrApprovalRequired):
		return http.StatusAccepted, keyState{Key: key.Name, State: "pending", Approval: id}
	case errors.Is(err, sealed.ErrUnavailable):
		return failed(key.Name, err) // a yes that was given stays: ask for no other
	}
	q.wait(key.Name, "")
	return failed(key.Name, err)
}

func failed(key sealed.KeyName, err error) (int, keyState) {
	if errors.Is(err, sealed.ErrUnavailable) {
		return http.StatusServiceUnavailable, keyState{Key: key, State: "unavailable", Reasons: []sealed.Reason{{Code: "unavailable", Msg: "the engine or the source does not answer; try again"}}}
	}
	return http.StatusForbidden, denied(key, "refused", "the engine refused; the run's log has the reason")
}

func denied(key sealed.KeyName, code, msg string) keyState {
	return keyState{Key: key, State: "denied", Reasons: []sealed.Reason{{Code: code, Msg: msg}}}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
