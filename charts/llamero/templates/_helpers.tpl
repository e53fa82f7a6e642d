{{/* Every name, label and derived setting of the chart; templates build none themselves. */}}

{{- define "llamero.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "llamero.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "llamero.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "llamero.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llamero.operatorName" -}}{{ include "llamero.fullname" . }}-operator{{- end -}}
{{- define "llamero.redisName" -}}{{ include "llamero.fullname" . }}-redis{{- end -}}
{{- define "llamero.settingsName" -}}{{ include "llamero.fullname" . }}-settings{{- end -}}
{{- define "llamero.workersName" -}}{{ include "llamero.fullname" . }}-workers{{- end -}}
{{- define "llamero.enginesName" -}}{{ include "llamero.fullname" . }}-engines{{- end -}}
{{- define "llamero.chatName" -}}{{ include "llamero.fullname" . }}-chat{{- end -}}
{{- define "llamero.chatInnerName" -}}{{ include "llamero.fullname" . }}-chat-inner{{- end -}}
{{- define "llamero.routesRoleName" -}}{{ include "llamero.fullname" . }}-routes{{- end -}}
{{- define "llamero.leaseRoleName" -}}{{ include "llamero.fullname" . }}-lease{{- end -}}
{{- define "llamero.viewRoleName" -}}{{ include "llamero.fullname" . }}-view{{- end -}}
{{- define "llamero.editRoleName" -}}{{ include "llamero.fullname" . }}-edit{{- end -}}

{{/* Cluster-wide objects carry the namespace, so that two releases of one name do not meet. */}}
{{- define "llamero.clusterRoleName" -}}{{ .Release.Namespace }}-{{ include "llamero.operatorName" . }}{{- end -}}

{{- define "llamero.serviceAccountName" -}}
{{- default (include "llamero.operatorName" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Labels that a component's selectors use; call with (dict "root" . "component" "operator"). */}}
{{- define "llamero.selector" -}}
app.kubernetes.io/name: {{ include "llamero.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "llamero.labels" -}}
{{ include "llamero.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Pods that the operator makes for jobs (llamero.spec.names.child_labels): all of its pods but the engines'. */}}
{{- define "llamero.workerSelector" -}}
matchLabels:
  app.kubernetes.io/name: llamero
  app.kubernetes.io/managed-by: llamero-operator
matchExpressions:
  - key: app.kubernetes.io/component
    operator: NotIn
    values: [engine]
{{- end -}}

{{/* Pods that the operator makes for ModelServers (llamero.spec.names.server_labels). */}}
{{- define "llamero.engineSelector" -}}
matchLabels:
  app.kubernetes.io/name: llamero
  app.kubernetes.io/managed-by: llamero-operator
  app.kubernetes.io/component: engine
{{- end -}}

{{/* -- ports and names that the code knows (llamero.spec.names) ------------------------------------------------------ */}}

{{- define "llamero.enginePort" -}}8080{{- end -}}
{{- define "llamero.agentPort" -}}8090{{- end -}}
{{- define "llamero.chatPort" -}}8080{{- end -}}
{{- define "llamero.chatInnerPort" -}}8081{{- end -}}
{{- define "llamero.routesName" -}}llamero-routes{{- end -}}

{{/* Seconds that a chat pod goes on taking requests once it is told to end, until no Service leads to it. */}}
{{- define "llamero.chatLeaveSeconds" -}}10{{- end -}}

{{/* -- settings --------------------------------------------------------------------------------------------------- */}}

{{- define "llamero.image" -}}
{{- $given := dig "images" .component "" .root.Values.settings -}}
{{- if $given -}}
{{- $given -}}
{{- else -}}
{{- $registry := ternary "" (printf "%s/" (trimSuffix "/" .root.Values.images.registry)) (empty .root.Values.images.registry) -}}
{{- printf "%sllamero-%s:%s" $registry .component (default .root.Chart.AppVersion .root.Values.images.tag) -}}
{{- end -}}
{{- end -}}

{{- define "llamero.storageClaim" -}}
{{- default (printf "%s-storage" (include "llamero.fullname" .)) .Values.storage.claimName -}}
{{- end -}}

{{/* Whether the settings leave the storage to the chart. */}}
{{- define "llamero.createsStorage" -}}
{{- $storage := default dict .Values.settings.storage -}}
{{- if and .Values.storage.create (not $storage.uri) (not $storage.claim) (not $storage.hostPath) -}}true{{- end -}}
{{- end -}}

{{/* The operator's settings as YAML: `settings` of the values, with what the chart itself decides. */}}
{{- define "llamero.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $images := dict -}}
{{- range $component := list "operator" "data" "trainer" "engine" "agent" "chat" "tgi" -}}
{{- $_ := set $images $component (include "llamero.image" (dict "root" $ "component" $component)) -}}
{{- end -}}
{{- $_ := set $settings "images" (merge $images (default dict $settings.images)) -}}
{{- if and (include "llamero.runsChat" .) (not (hasKey (default dict $settings.serving) "chats")) -}}
{{- $inner := printf "%s.%s.svc:%s" (include "llamero.chatInnerName" .) .Release.Namespace (include "llamero.chatInnerPort" .) -}}
{{- $_ := set $settings "serving" (merge (dict "chats" (list $inner)) (default dict $settings.serving)) -}}
{{- end -}}
{{- if include "llamero.createsStorage" . -}}
{{- $_ := set $settings "storage" (merge (dict "claim" (include "llamero.storageClaim" .)) (default dict $settings.storage)) -}}
{{- end -}}
{{- if gt (int .Values.operator.replicas) 1 -}}
{{- $_ := set $settings "lease" (merge (dict "enabled" true) (default dict $settings.lease)) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{- define "llamero.serves" -}}{{- if dig "serving" "enabled" true .Values.settings -}}true{{- end -}}{{- end -}}
{{- define "llamero.runsChat" -}}{{- if and .Values.chat.enabled (include "llamero.serves" .) -}}true{{- end -}}{{- end -}}
{{- define "llamero.healthPort" -}}{{ dig "healthPort" 8080 .Values.settings | int }}{{- end -}}
{{- define "llamero.metricsPort" -}}{{ dig "metricsPort" 9090 .Values.settings | int }}{{- end -}}
{{- define "llamero.leaseName" -}}{{ dig "lease" "name" "llamero-operator" .Values.settings }}{{- end -}}
{{- define "llamero.leaseNamespace" -}}{{ dig "lease" "namespace" .Release.Namespace .Values.settings }}{{- end -}}
{{- define "llamero.usesLease" -}}
{{- if or (gt (int .Values.operator.replicas) 1) (dig "lease" "enabled" false .Values.settings) -}}true{{- end -}}
{{- end -}}

{{/* Namespaces that the chart itself can prepare for jobs: those named in the settings, else its own. As a JSON list. */}}
{{- define "llamero.jobNamespaces" -}}
{{- $named := default list .Values.settings.namespaces -}}
{{- ternary $named (list .Release.Namespace) (gt (len $named) 0) | toJson -}}
{{- end -}}

{{/* -- Redis ------------------------------------------------------------------------------------------------------ */}}

{{- define "llamero.redisMode" -}}
{{- if .Values.redis.existingSecret.name -}}existing{{- else if .Values.redis.url -}}external{{- else -}}own{{- end -}}
{{- end -}}

{{- define "llamero.redisSecretName" -}}{{ default (include "llamero.redisName" .) .Values.redis.existingSecret.name }}{{- end -}}
{{- define "llamero.redisSecretKey" -}}
{{- ternary .Values.redis.existingSecret.key "url" (eq (include "llamero.redisMode" .) "existing") -}}
{{- end -}}

{{/* -- pods ------------------------------------------------------------------------------------------------------- */}}

{{/* A pod's securityContext: restricted, with the ids of settings.security (null leaves one to the cluster). */}}
{{- define "llamero.podSecurity" -}}
{{- $security := default dict .Values.settings.security -}}
runAsNonRoot: true
{{- range $field, $target := dict "uid" "runAsUser" "gid" "runAsGroup" "fsGroup" "fsGroup" }}
{{- $id := ternary (get $security $field) 10001 (hasKey $security $field) }}
{{- if $id }}
{{ $target }}: {{ int64 $id }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "llamero.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Placement and pull secrets of one of the chart's own pods; call with (dict "root" . "values" .Values.operator). */}}
{{- define "llamero.placement" -}}
{{- with .root.Values.settings.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* -- rights ----------------------------------------------------------------------------------------------------- */}}

{{/* What the operator may do in a namespace with jobs; docs/install.md says why for each line. */}}
{{- define "llamero.operatorRules" -}}
- apiGroups: [llamero.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, update, patch, delete]
- apiGroups: [llamero.dev]
  resources: [finetunejobs/status]
  verbs: [get, update, patch]
- apiGroups: [llamero.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
{{- if include "llamero.serves" . }}
- apiGroups: [llamero.dev]
  resources: [adapters]
  verbs: [get, list, watch, create, patch]
- apiGroups: [llamero.dev]
  resources: [adapters/status, modelservers/status]
  verbs: [get, update, patch]
- apiGroups: [llamero.dev]
  resources: [modelservers]
  verbs: [get, list, watch, create, patch]
- apiGroups: [llamero.dev]
  resources: [modelservers/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, create, patch, delete]
{{- else }}
- apiGroups: [llamero.dev]
  resources: [adapters]
  verbs: [get, list, watch, create]
{{- end }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [llamero-redis]
  verbs: [update, patch]
{{- end -}}

{{/* -- network ---------------------------------------------------------------------------------------------------- */}}

{{- define "llamero.dnsEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{/* The API server's address is the cluster's own matter: its ports are all that can be said of it. */}}
{{- define "llamero.apiServerEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
    {{- end }}
  {{- with .Values.networkPolicy.apiServerCidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* To the engines' pods in every namespace; call with (dict "port" 8080). */}}
{{- define "llamero.engineEgress" -}}
- to:
    - namespaceSelector: {}
      podSelector: {{- include "llamero.engineSelector" . | nindent 8 }}
  ports:
    - port: {{ .port }}
{{- end -}}

{{/* To Redis: the chart's own by its labels, another by the ports of networkPolicy.redisPorts. */}}
{{- define "llamero.redisEgress" -}}
{{- if eq (include "llamero.redisMode" .) "own" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {{- include "llamero.selector" (dict "root" . "component" "redis") | nindent 10 }}
  ports:
    - port: 6379
{{- else -}}
- ports:
    {{- range .Values.networkPolicy.redisPorts }}
    - port: {{ . }}
    {{- end }}
{{- end -}}
{{- end -}}
