package e2e

// modelHost is where the model double answers.
const modelHost = "api.anthropic.test"
