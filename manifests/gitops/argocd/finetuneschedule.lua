-- Health of a FineTuneSchedule for Argo CD: healthy while the schedule works, whatever becomes of its runs. A schedule
-- that needs a correction is degraded.
local health = {status = "Progressing", message = "Waiting for the operator."}
local status = obj.status or {}

-- Ignore a status that is based on an earlier generation of the spec.
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
  health.status = "Healthy"  -- It was reconciled.
end

local function describe(condition)
  return condition.reason .. ": " .. (condition.message or "")
end

local rank = {{"Stalled", "Degraded"}, {"Reconciling", "Progressing"}, {"Suspended", "Suspended"}}
for _, entry in ipairs(rank) do
  local condition = conditions[entry[1]]
  if condition ~= nil and condition.status == "True" then
    return {status = entry[2], message = describe(condition)}
  end
end
if conditions.Promoted ~= nil then  -- The decision about the last run.
  health.message = describe(conditions.Promoted)
end
return health
