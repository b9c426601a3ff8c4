package demo

import "context"

// TryNext prints what to try on the running platform, ready to be pasted.
func TryNext(_ context.Context, e Environment) {
	var k keys
	if err := e.State.Load(keysFile, &k); err != nil {
		e.Console.Say("%v", err)
		return
	}
	say := e.Console.Say
	say("The platform keeps running; Ctrl-C stops it, the next start takes up this state. To try next:")
	say("")
	if k.Tenant != "" {
		say("  # a tenant that has just moved: its tasks, and a new project")
		say("  curl -s -H 'Authorization: Bearer %s' '%s/projects/tasks?limit=3'", k.Tenant, e.Gateway)
		say("  curl -s -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' -d '{\"name\":\"Mine\"}' %s/projects/projects", k.Tenant, e.Gateway)
		say("")
	}
	say("  # as an operator: a new organisation (it begins in blue), and the runs")
	say("  curl -s -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' -d '{\"name\":\"Acme\",\"slug\":\"acme\"}' %s/tenants/tenants", k.Operator, e.Gateway)
	say("  curl -s -H 'Authorization: Bearer %s' %s/migrations/runs", k.Operator, e.Gateway)
	say("")
	say("  # what every function offers")
	say("  curl -s %s/", e.Gateway)
	say("")
}
