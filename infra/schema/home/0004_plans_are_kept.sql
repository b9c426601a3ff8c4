-- +goose Up
-- The mover's sessions plan each of their statements anew (a fresh table has no statistics yet), and what they call with
-- it. These functions read the catalogue by its keys, for one tenant after the other: one plan serves them all.
ALTER FUNCTION coditect.shape(text) SET plan_cache_mode = 'force_generic_plan';
ALTER FUNCTION coditect.arm(text) SET plan_cache_mode = 'force_generic_plan';
ALTER FUNCTION coditect.fence(uuid, bigint, int) SET plan_cache_mode = 'force_generic_plan';
ALTER FUNCTION coditect.unfence(uuid, bigint, int) SET plan_cache_mode = 'force_generic_plan';
