{{/* Value of the label app.kubernetes.io/name. */}}
{{- define "finetune-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/*
Name of all objects: the release name, followed by the chart name unless the release name contains it. A Service must
not have a dot in its name, and a release may.
*/}}
{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.create is false: set serviceAccount.name to the name of the ServiceAccount to use" -}}
{{- end -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{- define "finetune-operator.leaseName" -}}
{{- .Values.settings.leaseName | default (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels of all objects. */}}
{{- define "finetune-operator.labels" -}}
{{- $labels := include "finetune-operator.selectorLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- include "finetune-operator.addLabels" (list (toYaml $labels) "commonLabels" .Values.commonLabels) -}}
{{- end -}}

{{/* Labels with those of a value: (list <labels as YAML> <name of the value> <its labels>). None is replaced. */}}
{{- define "finetune-operator.addLabels" -}}
{{- $labels := index . 0 | fromYaml -}}
{{- $name := index . 1 -}}
{{- range $key, $value := index . 2 -}}
{{- if ne (get $labels $key | default $value) $value -}}
{{- fail (printf "%s must not contain %s: the chart or commonLabels sets this label to another value" $name $key) -}}
{{- end -}}
{{- $_ := set $labels $key $value -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{/* Image reference of (dict "image" <value> "root" <root>). */}}
{{- define "finetune-operator.image" -}}
{{- if kindIs "string" .image -}}
{{- if regexMatch "[:@][^/]*$" .image -}}
{{- .image -}}
{{- else -}}
{{- printf "%s:%s" .image .root.Chart.AppVersion -}}
{{- end -}}
{{- else -}}
{{- $registry := (.root.Values.global).imageRegistry | default .image.registry -}}
{{- $tag := .image.tag -}}
{{- if not (or $tag .image.digest) -}}{{- $tag = .root.Chart.AppVersion -}}{{- end -}}
{{- with $registry -}}{{- printf "%s/" . -}}{{- end -}}
{{- .image.repository -}}
{{- with $tag -}}{{- printf ":%s" . -}}{{- end -}}
{{- with .image.digest -}}{{- printf "@%s" . -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Pull policy of the operator image, or nothing. */}}
{{- define "finetune-operator.pullPolicy" -}}
{{- if kindIs "string" .Values.image -}}
{{- .Values.imagePullPolicy | default "IfNotPresent" -}}
{{- else -}}
{{- .Values.imagePullPolicy | default .Values.image.pullPolicy -}}
{{- end -}}
{{- end -}}

{{/* Pull policy of the trainer image, or nothing. */}}
{{- define "finetune-operator.trainerPullPolicy" -}}
{{- if kindIs "string" .Values.trainer.image -}}
{{- .Values.trainer.imagePullPolicy | default "" -}}
{{- else -}}
{{- .Values.trainer.imagePullPolicy | default .Values.trainer.image.pullPolicy -}}
{{- end -}}
{{- end -}}

{{/* The ways in which the security contexts are weaker than the Pod Security Standard restricted, one per line. */}}
{{- define "finetune-operator.weakenedSecurity" -}}
{{- $context := merge dict .Values.securityContext .Values.podSecurityContext -}}
{{- if ne (toString $context.runAsNonRoot) "true" }}
runAsNonRoot is not true
{{- end }}
{{- if eq (toString $context.runAsUser) "0" }}
runAsUser is 0
{{- end }}
{{- if not (has ($context.seccompProfile).type (list "RuntimeDefault" "Localhost")) }}
seccompProfile.type is neither RuntimeDefault nor Localhost
{{- end }}
{{- if ne (toString $context.allowPrivilegeEscalation) "false" }}
allowPrivilegeEscalation is not false
{{- end }}
{{- if $context.privileged }}
privileged is true
{{- end }}
{{- if not (has "ALL" (($context.capabilities).drop | default list)) }}
capabilities.drop does not contain ALL
{{- end }}
{{- if ($context.capabilities).add }}
capabilities.add is not empty
{{- end }}
{{- end -}}

{{/* The values in defaults that are not empty, as JSON. */}}
{{- define "finetune-operator.defaults" -}}
{{- $set := dict -}}
{{- range $name, $value := .Values.defaults -}}
{{- if $value -}}{{- $_ := set $set $name $value -}}{{- end -}}
{{- end -}}
{{- $set | toJson -}}
{{- end -}}

{{/* The compute profiles and which of them are defaults, as JSON. */}}
{{- define "finetune-operator.profiles" -}}
{{- $content := dict "profiles" .Values.profiles "namespaceProfiles" .Values.namespaceProfiles -}}
{{- with .Values.defaultProfile -}}{{- $_ := set $content "defaultProfile" . -}}{{- end -}}
{{- range $name := append (values .Values.namespaceProfiles) .Values.defaultProfile | compact -}}
{{- if not (hasKey $.Values.profiles $name) -}}
{{- fail (printf "defaultProfile and namespaceProfiles must name profiles: there is no profile %s in profiles" $name) -}}
{{- end -}}
{{- end -}}
{{- $content | toPrettyJson -}}
{{- end -}}

{{/* Permissions of the operator, in the cluster or in each watched namespace. They never include Secrets. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  # create, patch: the FineTuneJobs of schedules and sweeps; delete: ttlSecondsAfterFinished and history limits
  verbs: [list, watch, create, patch, delete]
- apiGroups: [finetune.dev]
  resources: [finetuneschedules, finetunesweeps]
  verbs: [list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status, finetuneschedules/status, finetunesweeps/status]
  verbs: [patch]
# OpenShift requires this permission to set an object as the owner of another one.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers, finetuneschedules/finalizers, finetunesweeps/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: deadlines, delete: suspend
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete] # delete: those of earlier attempts, with their volumes
# The headless Service for the rendezvous of a FineTuneJob with several nodes.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Quota errors and missing Secrets are reported only in Events.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
{{- end -}}

{{/* Egress rule of a NetworkPolicy to DNS servers, from a list of peers. */}}
{{- define "finetune-operator.dns" -}}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end -}}

{{/* Egress rules of a NetworkPolicy from a list of destinations. */}}
{{- define "finetune-operator.destinations" -}}
{{- range . }}
- to:
    {{- if .cidr }}
    - ipBlock:
        cidr: {{ .cidr }}
        {{- $metadata := get (dict "0.0.0.0/0" (list "169.254.0.0/16" "100.100.100.200/32" "168.63.129.16/32") "::/0" (list "fe80::/10" "fd00:ec2::/32" "fd20:ce::/64")) .cidr }}
        {{- with concat (.except | default list) ($metadata | default list) | uniq }}
        except:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    {{- else }}
    - {{- toYaml (omit . "ports") | nindent 6 }}
    {{- end }}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Egress rules of trainer pods and task pods. */}}
{{- define "finetune-operator.egress" -}}
{{- with .Values.networkPolicy.dns }}
{{- include "finetune-operator.dns" . }}
{{- end }}
{{- with .Values.networkPolicy.destinations }}
{{- include "finetune-operator.destinations" . }}
{{- end }}
{{- if .Values.networkPolicy.allowMetadata }}
# Metadata services of AWS, Azure and Google, of EKS Pod Identity, and of GKE, which is behind the first address.
- to:
    - ipBlock: {cidr: 169.254.169.254/32}
    - ipBlock: {cidr: 169.254.170.23/32}
    - ipBlock: {cidr: 169.254.169.252/32}
  ports:
    - {protocol: TCP, port: 80}
    - {protocol: TCP, port: 988}
{{- end }}
{{- end -}}
