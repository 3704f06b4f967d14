-- Health of a FineTuneSweep for Argo CD: Progressing until the trials are compared or the sweep is suspended. A
-- cancelled sweep has no result, so that later waves of a sync do not start after it.
local ends = {Complete = "Healthy", Failed = "Degraded", Suspended = "Suspended", Cancelled = "Suspended"}
local health = {status = "Progressing", message = "Waiting for the operator."}
local status = obj.status or {}

-- Ignore a status that is based on an earlier generation of the spec.
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return health
end

for index, condition in ipairs(status.conditions or {}) do
  if index == 1 then  -- The others refer to the message of the first.
    health.message = condition.reason .. ": " .. (condition.message or "")
  end
  if condition.status == "True" and ends[condition.type] ~= nil then
    health.status = ends[condition.type]
  end
end
return health
