// Package convert derives green's shared tables from the structure of one tenant's
// schema: tenant_id in front of every key, everything else as it was. It prints
// the SQL for review, applies it, and tells the copier where every column goes.
package convert
