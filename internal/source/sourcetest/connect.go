package sourcetest

import (
	"encoding/json"
	"net/http"
	"regexp"
)

// Connect is a 1Password Connect server that holds one vault. It is a double:
// it answers as version 1.7.1 of the OpenAPI document says, including its error
// bodies, and wants the token on every call.
func Connect(token, vaultID, name string, items ...map[string]any) http.Handler {
	mux := http.NewServeMux()
	send := func(w http.ResponseWriter, r *http.Request, code int, body any) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			code, body = http.StatusUnauthorized, map[string]any{"status": 401, "message": "Invalid token signature"}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	filter := regexp.MustCompile(`^(name|title) eq "([^"\\]+)"$`)
	missing := map[string]any{"status": 404, "message": "not found"}
	vault := map[string]any{"id": vaultID, "name": name, "attributeVersion": 1, "contentVersion": 9, "items": len(items), "type": "USER_CREATED"}
	mux.HandleFunc("GET /v1/vaults", func(w http.ResponseWriter, r *http.Request) {
		m := filter.FindStringSubmatch(r.FormValue("filter"))
		if m == nil || m[2] != name { // the document says name, 1Password's own client title
			send(w, r, http.StatusOK, []any{})
			return
		}
		send(w, r, http.StatusOK, []any{vault})
	})
	mux.HandleFunc("GET /v1/vaults/{vault}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("vault") != vaultID {
			send(w, r, http.StatusForbidden, map[string]any{"status": 403, "message": "vault is not in scope"})
			return
		}
		send(w, r, http.StatusOK, vault)
	})
	mux.HandleFunc("GET /v1/vaults/"+vaultID+"/items", func(w http.ResponseWriter, r *http.Request) {
		m := filter.FindStringSubmatch(r.FormValue("filter"))
		found := []any{}
		for _, it := range items {
			if m != nil && m[1] == "title" && it["title"] == m[2] {
				found = append(found, map[string]any{"id": it["id"], "title": it["title"], "vault": it["vault"], "state": it["state"], "category": "LOGIN"})
			}
		}
		send(w, r, http.StatusOK, found)
	})
	mux.HandleFunc("GET /v1/vaults/"+vaultID+"/items/{item}", func(w http.ResponseWriter, r *http.Request) {
		for _, it := range items {
			if it["id"] == r.PathValue("item") {
				send(w, r, http.StatusOK, it)
				return
			}
		}
		send(w, r, http.StatusNotFound, missing)
	})
	return mux
}
